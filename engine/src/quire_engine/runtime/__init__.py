"""From plans to tensors: sizing (pure), batch arrays, the KV cache, the runner."""
