"""Images on demand: recipe, queue, worker, sandbox, builders, signer, artefact store."""
