module thaw

go 1.19
