"""How a decoder is run, apart from what it computes."""

import dataclasses

ATTENTIONS = ("plain", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class Execution:
    """Trades of memory against time, and the kernels; results agree up to rounding.

    The defaults suit small models and short rows.
    """

    param_dtype: str = ""  # of the parameters; empty: that of the operands of products
    scan_layers: bool = False  # one layer compiled and looped over, in place of all unrolled
    remat: bool = False  # a layer keeps its input alone and runs again in the backward pass
    attention: str = "plain"  # of ATTENTIONS, for rows of `attention.LONG` slots or more
    logit_slots: int = 0  # slots of a row whose logits exist at once; 0: all
    logit_entries: int = 0  # entries of the vocabulary, likewise
    decode_tokens: int = 0  # slots of cache that a device holds while decoding; 0: of all rows


DEFAULTS = Execution()
