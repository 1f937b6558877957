"""The router's own answers: one small page for each of Heroku's error codes it gives. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One error: the HTTP `status`, Heroku's `code` where there is one, a title and what to do."""

    status: int
    code: str
    title: str
    text: str

    def html(self) -> str:
        """Return the page for a browser."""
        code = f" ({self.code})" if self.code else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{self.title}</title></head>\n"
            '<body style="font-family:sans-serif;max-width:36em;margin:15vh auto;padding:0 1em">\n'
            f"<h1>{self.title}</h1>\n<p>{self.text}{code}</p>\n</body></html>\n"
        )

    def plain(self) -> str:
        """Return the page for anything else."""
        code = f" ({self.code})" if self.code else ""
        return f"{self.title}. {self.text}{code}\n"


NO_SUCH_APP = Page(404, "", "No such app", "There is no app at this address. Check the address and the app's domains.")
NO_WEB = Page(503, "H14", "No web dynos running", "The app has no running web dyno. Its owner can scale it up.")
CRASHED = Page(
    503, "H10", "App crashed", "No web dyno of the app could be reached. Its owner can look at the app's logs."
)
CLOSED = Page(502, "H13", "Connection closed without response", "The app closed the connection before it answered.")
TIMEOUT = Page(504, "H12", "Request timeout", "The app did not answer in time.")
INTERNAL = Page(500, "H99", "Platform error", "The router failed to handle the request.")

NEGOTIATED = (NO_SUCH_APP, NO_WEB)
FIXED = (CRASHED, CLOSED, TIMEOUT, INTERNAL)


def files() -> dict[str, str]:
    """Return the files of all pages by name."""
    both = {
        f"{name(page)}.{kind}": text
        for page in NEGOTIATED
        for kind, text in (("html", page.html()), ("txt", page.plain()))
    }
    return both | {f"{name(page)}.html": page.html() for page in FIXED}


def name(page: Page) -> str:
    """Return the stem of a page's file name."""
    return (page.code or page.title).lower().replace(" ", "-")
