"""File formats, one module each. Its file name is the format's name; the contract is

    sniff(path: Path, head: bytes) -> bool     by magic and structure; `head` is the file's first
                                               4,096 bytes, empty for a folder
    describe(path: Path) -> ModelInfo          the facts, without running anything; raises
                                               `ModelFileError` that names the file and the reason
    open_checkpoint(path: Path) -> Checkpoint  where the format holds readable weights (optional)

Modules whose names begin with `_`, and `gguf_types`, are helpers. Imports neither numpy nor any
inference library.
"""
