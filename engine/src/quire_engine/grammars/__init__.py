"""What an answer must match: asked for (asked.py, schema.py), compiled (store.py, compiler.py, taster.py).

Nothing here knows logits or slots: sampling/grammar.py does. xgrammar is imported by binding.py alone, at the first
grammar, so that an engine which is never asked for one does not pay for it.
"""
