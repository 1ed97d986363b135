"""SigLIP 2 NaFlex."""
