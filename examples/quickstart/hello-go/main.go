// Counts primes with the sieve of Eratosthenes.
package main

import (
	"context"
	"fmt"

	"thaw/function"
)

type Request struct {
	Below int `json:"below"`
}

type Answer struct {
	Primes  int `json:"primes"`
	Largest int `json:"largest"`
}

func handler(ctx context.Context, request Request) (Answer, error) {
	if request.Below < 0 || request.Below > 10_000_000 {
		return Answer{}, fmt.Errorf("below must be between 0 and 10000000, not %d", request.Below)
	}
	composite := make([]bool, request.Below)
	var answer Answer
	for n := 2; n < request.Below; n++ {
		if composite[n] {
			continue
		}
		answer.Primes++
		answer.Largest = n
		for multiple := n * n; multiple < request.Below; multiple += n {
			composite[multiple] = true
		}
	}
	return answer, nil
}

func main() {
	function.Start(handler)
}
