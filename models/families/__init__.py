"""What differs between families of vision-language models: loading, published shapes, the vision tower, adapters."""
