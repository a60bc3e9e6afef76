"""``python -m prefiere`` and ``torchrun -m prefiere`` are the command ``prefiere``."""

from prefiere.cli.main import main

if __name__ == "__main__":
    main()
