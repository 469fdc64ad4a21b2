"""From text to token ids and back: tokenizer, chat template, streams of text. No torch, no HTTP."""
