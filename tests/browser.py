"""A page in headless Chromium: what it does when it is opened, narrow and wide."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

# Before anything else in the page, so that nothing goes unnoticed.
_LISTEN = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)), true);
addEventListener("securitypolicyviolation", (event) => problems.push(event.blockedURI));
for (const what of ["error", "warn"]) console[what] = (...said) => problems.push(said.join(" "));
</script>"""


def look_at(page: Path, script: str, widths=(390, 1400)) -> dict[int, dict]:
    """What a script returns in the page, at each width in pixels, and the page's problems.

    The page is shown in frames of those widths, since a window has a least one.

    Args:
        page: The file.
        script: The body of a JavaScript function of the page's `window` and `document`.
        widths: The widths.

    Returns:
        For each width `value`, what the script returned, and `problems`, a list of errors.
    """
    assert CHROMIUM is not None
    content = page.read_text(encoding="utf-8").replace("<head>", f"<head>{_LISTEN}", 1)
    frames = "".join(
        f'<iframe width="{width}" height="900" frameborder="0" srcdoc="{escape(content)}"></iframe>'
        for width in widths
    )
    ask = f"""
    const found = {{}};
    for (const frame of document.querySelectorAll("iframe")) {{
      const window = frame.contentWindow, document = frame.contentDocument;
      const value = ((window, document) => {{ {script} }})(window, document);
      found[frame.width] = {{ value, problems: window.problems }};
    }}
    const shown = document.createElement("pre");
    shown.id = "found";
    shown.textContent = JSON.stringify(found);
    document.body.append(shown);
    """
    outer = page.with_name("frames.html")
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><body>{frames}'
        f'<script>addEventListener("load", () => {{ {ask} }});</script>',
        encoding="utf-8",
    )
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom"),
        outer.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return {int(width): one for width, one in json.loads(unescape(found[1])).items()}
