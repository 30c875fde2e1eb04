"""`python -m burnish`: the `burnish` command."""

from burnish.cli.main import main

main()
