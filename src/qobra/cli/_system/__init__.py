"""What the system programs are made of: the table of options, and one module for each group of them."""
