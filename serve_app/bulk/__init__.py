"""Many rows through one program: the file in, the file out, and the calls between them."""
