module launcher

go 1.19

require thaw v0.0.0

replace thaw => ../go
