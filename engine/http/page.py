"""The files of the pages: read once when a server starts, and served with a policy that lets no other host in."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import Response

FOLDER = Path(__file__).parent / "static"
# What a browser may load, run or show on these pages: nothing from elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCUMENTATION = {"/docs": "docs.html", "/static/docs.js": "docs.js", "/static/page.css": "page.css"}
STUDIO = {
    "/": "studio.html", "/static/studio.css": "studio.css",
    **{f"/static/{name}.js": f"{name}.js" for name in ("studio", "client", "code", "controls")},
}  # fmt: skip


@dataclass(frozen=True)
class Asset:
    """A file at a path."""

    path: str
    data: bytes
    kind: str

    def serve(self) -> Response:
        """It, never from a cache: the next version's page must not meet this one's scripts."""
        headers = {
            "Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }  # fmt: skip
        return Response(self.data, media_type=self.kind, headers=headers)


def assets(studio: bool) -> tuple[Asset, ...]:
    """The page of the API, and the studio where it is asked for."""
    names = DOCUMENTATION | (STUDIO if studio else {})
    return tuple(
        Asset(path, (FOLDER / name).read_bytes(), f"{mimetypes.guess_type(name)[0]}; charset=utf-8")
        for path, name in names.items()
    )
