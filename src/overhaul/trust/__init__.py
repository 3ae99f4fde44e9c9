"""Keys, signers and verifiers."""
