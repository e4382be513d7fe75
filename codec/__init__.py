"""Text as latent codes and back: documents become rows of tokens here, which the codec's networks learn from and are measured on."""
