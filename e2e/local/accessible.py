"""Whether a page can be read and used: names, contrast, the way of the Tab key, width. Measured in the browser, on what is seen.

The contrasts are those of WCAG 2, level AA: 4.5 to 1 for text, 3 to 1 for large text and for the edges of fields.
"""

from typing import Any

__all__ = ["check_contrast", "check_names", "check_tab_order", "check_width"]

_SEEN = "const seen = (e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length > 0;"

_NAMELESS = f"""() => {{
  {_SEEN}
  const named = (e) => e.ariaLabel || e.labels?.length || e.textContent.trim() || e.getAttribute("alt")
    || document.getElementById(e.getAttribute("aria-labelledby"));
  const all = document.querySelectorAll("button, a, input, select, textarea, summary, dialog, svg[role], [role=region], [role=log], section");
  const problems = [...all].filter((e) => seen(e) && !named(e)).map((e) => e.outerHTML.slice(0, 200));
  for (const table of document.querySelectorAll("table"))
    if (!table.querySelector("th[scope=col]")) problems.push("a table without headers");
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(seen).map((e) => Number(e.tagName[1]));
  levels.forEach((level, i) => i > 0 && level > levels[i - 1] + 1 && problems.push(`h${{levels[i - 1]}} is followed by h${{level}}`));
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  problems.push(...ids.filter((id, i) => ids.indexOf(id) !== i).map((id) => `twice: ${{id}}`));
  return problems;
}}"""

_PALE = f"""() => {{
  {_SEEN}
  const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const opaque = (color) => color.length === 3 || color[3] > 0;
  const backOf = (e) => {{
    for (; e; e = e.parentElement) {{
      const color = parse(getComputedStyle(e).backgroundColor);
      if (opaque(color)) return color;
    }}
    return [255, 255, 255];
  }};
  const light = (color) => {{
    const [r, g, b] = color.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }};
  const ratio = (a, b) => {{
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  }};
  const pale = [];
  let measured = 0;
  const measure = (what, color, back, least) => {{
    measured += 1;
    const found = ratio(parse(color), back);
    if (found < least) pale.push(`${{what}}: ${{found.toFixed(2)}}, ${{color}} on ${{back}}`);
  }};
  for (const e of document.body.querySelectorAll("*")) {{
    if (!seen(e)) continue;
    const style = getComputedStyle(e);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const writes = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (writes && !e.disabled) measure(e.textContent.trim().slice(0, 40), style.color, backOf(e), large ? 3 : 4.5);
    if (e.matches("input, select, textarea")) {{
      measure(`${{e.id}} placeholder`, getComputedStyle(e, "::placeholder").color, backOf(e), 4.5);
      measure(`${{e.id}} edge`, style.borderTopColor, backOf(e.parentElement), 3);
    }}
    if (e.matches(".spark path")) measure("sparkline", style.stroke, backOf(e), 3);
  }}
  return {{ pale, measured }};
}}"""

_FOCUSABLE = f"""() => {{
  {_SEEN}
  const all = document.querySelectorAll("a[href], button:enabled, input, select, textarea, summary, [tabindex='0']");
  return [...all].filter(seen).map((e, i) => (e.dataset.stop = String(i)));
}}"""

_FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  const scrolls = e.scrollHeight > e.clientHeight || e.scrollWidth > e.clientWidth;
  return { stop: e.dataset.stop ?? null, scrolls, html: e.outerHTML.slice(0, 120), ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 };
}"""


def check_names(page: Any) -> None:
    problems = page.evaluate(_NAMELESS)
    assert not problems, "\n".join(problems)


def check_contrast(page: Any) -> None:
    found = page.evaluate(_PALE)
    assert found["measured"] > 40, f"only {found['measured']} texts were found"
    assert not found["pale"], "too pale:\n" + "\n".join(found["pale"])


def check_tab_order(page: Any) -> None:
    """Tab reaches all there is, as it stands in the page, and one sees where one is.

    Chromium stops at what can be scrolled, too, if there is more in it than is seen.
    """
    page.evaluate("() => document.activeElement.blur()")
    page.mouse.click(1, 1)  # the way begins at the top
    stops = page.evaluate(_FOCUSABLE)
    reached: list[str] = []
    for _ in range(2 * len(stops)):
        page.keyboard.press("Tab")
        focused = page.evaluate(_FOCUSED)
        assert focused["ring"], f"no ring around {focused['html']}"
        if focused["stop"] is None and focused["scrolls"]:
            continue
        reached.append(focused["stop"])
        if len(reached) == len(stops):
            break
    assert reached == stops, f"{reached} instead of {stops}"


def check_width(page: Any) -> None:
    """Nothing is to be found only by scrolling sideways, but what is in a region for that."""
    wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the window"
