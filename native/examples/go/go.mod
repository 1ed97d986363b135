module example.org/fgclip

go 1.21
