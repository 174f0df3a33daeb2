"""Run ``ldot`` as ``python -m ldot_milvus``; multi-process training uses ``accelerate launch -m ldot_milvus train``."""

from ldot_milvus.cli import main

main(prog_name="ldot")
