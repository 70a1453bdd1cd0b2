"""How is a bundle served by Triton Inference Server? A repository generator, and the model that the server runs."""
