"""Tens of thousands of samples: shards of a job that many processes share, restartable at any point.

job.py       the job: which samples, from which inputs, in which setting, cut into which shards
files.py     its folder: shards written aside and renamed, hashes, the manifest
formats.py   the bytes of a shard: .npy, or a webdataset tar
features.py  an ONNX model's features in place of the images
maker.py     what makes a shard: a Sampler, and the features' model
run.py       a run: look what is there, make what is missing, in this process
crew.py      the same on Ray: one actor a device; cluster.py is about the machines
"""
