package process

// Run starts a process and waits for its end. The output is the last of stdout and stderr, as far as it is kept.
func (m *Manager) Run(spec Spec) (*End, []byte, error) {
	_, reader, err := m.Start(spec)
	if err != nil {
		return nil, nil, err
	}
	defer reader.Detach()
	var output []byte
	buffer := make([]byte, readBytes)
	for {
		next := reader.take(buffer)
		if next.end != nil {
			return next.end, output, nil
		}
		output = append(output, next.data...)
		if len(output) > ringBytes {
			output = append([]byte(nil), output[len(output)-ringBytes/2:]...)
		}
		if len(next.data) == 0 {
			<-reader.wake
		}
	}
}
