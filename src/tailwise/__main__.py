"""`python -m tailwise` is the command `tailwise`."""

from tailwise.cli import main

main()
