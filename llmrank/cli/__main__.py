"""Run the command line as a module: python -m llmrank.cli"""

from llmrank.cli import main

main()
