"""What a run is: a YAML -> model and data, a folder -> a trained model, and how it uses its codebook."""
