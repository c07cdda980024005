"""Policy and critic: tokens in, numbers out.

`huggingface.load` and `save` read and write model directories, `decoder.Decoder` is the model,
`scoring` gives log-probs, entropies and values of given tokens, `sampling` draws new ones.
"""
