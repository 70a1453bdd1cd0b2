"""The bundle: a folder of exported graphs and built engines under one manifest.

manifest.py   the manifest as typed values; model.py, graphs.py, engines.py, files.py are its parts
fields.py     how one field is read and refused; schema.py: which fields an object has, by annotations
reader.py     opening: every size and SHA-256 before a runtime sees a byte
writer.py     writing: beside the old bundle, then in its place
prior.py      a fitted density of latents; directions.py: directions among them; fitted.py: fitted settings
vocabulary.py how text becomes an input of token ids, and the tokens
onnx_file.py  graphs that keep their weights to themselves
"""
