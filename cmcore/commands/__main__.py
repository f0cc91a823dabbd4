"""`python -m cmcore.commands`: the same as `cmlab`."""

from cmcore.commands.app import main

if __name__ == "__main__":
    main()
