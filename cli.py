"""Run the command line from a checkout: python cli.py --help"""

from llmrank.cli import main

main()
