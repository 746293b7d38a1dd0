"""`python -m octavo`: the command line without its console script."""

from octavo.cli import main

if __name__ == "__main__":
    main()
