"""``python -m ldot_milvus`` is ``ldot``; ``accelerate launch -m ldot_milvus train`` starts it in several processes."""

from ldot_milvus.cli import main

main(prog_name="ldot")
