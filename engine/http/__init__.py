"""The engine over HTTP, without Triton: JSON in, pictures out, clients' requests in one run, and the studio's page.

It needs the packages of the extra `serve`; the rest of the engine never imports this.
"""
