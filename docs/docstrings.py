"""For the site: docstrings, which are Sphinx's and doctest's, as Markdown has it."""

import re

import griffe

_ROLE = re.compile(r":(?:class|meth|func|mod|attr):`~?([^`]+)`")
_DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", flags=re.M)


class Markdown(griffe.Extension):
    """Roles become code, doctests become blocks of code."""

    def on_instance(self, *, obj, **_):
        if obj.docstring and not obj.is_alias:
            text = _ROLE.sub(r"`\1`", obj.docstring.value.replace("``", "`"))
            obj.docstring.value = _DOCTEST.sub(r"```python\n\g<0>\n```", text)
