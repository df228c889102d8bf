"""``python -m rlspeech``, which ``torchrun -m`` and ``accelerate launch -m`` use as well."""

from rlspeech.cli import main

if __name__ == "__main__":
    main()
