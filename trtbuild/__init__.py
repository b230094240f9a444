"""trtbuild: from a model in its own framework to a tested, cached inference engine."""
