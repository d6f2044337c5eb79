"""`python -m distrain` is the `distrain` command."""

from distrain.cli import main

if __name__ == "__main__":
    main()
