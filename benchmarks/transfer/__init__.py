"""The study of transfer (docs/transfer.md): data, trainings and tests from nothing, and their page.

    python -m benchmarks.transfer --out runs/transfer

Every step is an `ai-wam` command, printed before it runs; what is finished is not run again.
"""
