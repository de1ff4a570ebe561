"""For mkdocs: docstrings name classes by Sphinx's roles, which Markdown does not know; on the site they are plain code."""

import re

_ROLE = re.compile(r":(?:class|meth|func|mod|attr):<code>~?")


def on_page_content(html, **_):
    return _ROLE.sub("<code>", html)
