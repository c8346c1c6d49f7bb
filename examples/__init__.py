"""One folder for each pattern; README.md is the table of them."""
