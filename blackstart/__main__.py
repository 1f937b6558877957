"""`python -m blackstart`: what bootstrap.py runs once its environment is there."""

from blackstart.cli import main

main()
