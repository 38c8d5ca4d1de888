"""What came of it, as tables and as a chart."""

from statistics import median

from .load import Figures

SERVICE, CEILING, PGBENCH = "this service", "HTTP alone", "pgbench"
BEFORE = "this service before"
FASTIFY = "fastify + pg"

KINDS = {
    "callback": "callbacks",
    "member": "GET one member",
    "page": "GET a page of 100",
    "join": "joins",
}

# (kind, connections) -> contender -> what each round gave
Results = dict[tuple[str, int], dict[str, list[Figures]]]


def rate(results: Results, kind: str, connections: int, name: str) -> float | None:
    found = results.get((kind, connections), {}).get(name)
    return median(figures.rate for figures in found) if found else None


def ratio(results: Results, kind: str, connections: int, other: str) -> float | None:
    """Of this service to another: the median of the rounds' ratios, for the machine's speed drifts
    from round to round."""
    at = results.get((kind, connections), {})
    own, theirs = at.get(SERVICE), at.get(other)
    if not own or not theirs:
        return None
    return median(one.rate / two.rate for one, two in zip(own, theirs))


def thousands(number: float) -> str:
    return f"{number:,.0f}"


def table(results: Results) -> str:
    lines = [
        "| at | contender | per second | this service is | p50 ms | p99 ms | CPU µs | Postgres' CPU µs | peak MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (kind, connections), contenders in results.items():
        for name, rounds in contenders.items():
            factor = ratio(results, kind, connections, name) if name != SERVICE else None

            def of(field: str) -> float:
                return median(getattr(figures, field) for figures in rounds)

            cells = [
                f"{KINDS[kind]}, {connections} connection" + ("s" if connections > 1 else ""),
                name,
                thousands(of("rate")),
                f"{factor:.2f} x" if factor else "",
                f"{of('p50') / 1000:.2f}",
                f"{of('p99') / 1000:.2f}",
                # pgbench's own is not looked at.
                f"{of('cpu'):.0f}" if of("cpu") else "",
                f"{of('cpu_postgres'):.0f}",
                f"{max(figures.rss for figures in rounds):.0f}" if of("rss") else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short_table(results: Results) -> str:
    """The first table: rates alone."""
    columns = [("callback", n) for n in (2, 64, 256)] + [("member", 64), ("page", 64)]
    columns = [column for column in columns if column in results]
    names = list(dict.fromkeys(name for column in columns for name in results[column]))
    head = " | ".join(f"{KINDS[kind]}, {n}" for kind, n in columns)
    lines = [f"| per second, at so many connections | {head} |", "| --- |" + " ---: |" * len(columns)]
    for name in names:
        cells = [rate(results, kind, n, name) for kind, n in columns]
        lines.append(f"| {name} | " + " | ".join(thousands(cell) if cell else "" for cell in cells) + " |")
    return "\n".join(lines)


GOALS_HEAD = ["| goal | measured | reached |", "| --- | --- | --- |"]


def goal(text: str, value: float, unit: str, reached: bool) -> str:
    return f"| {text} | {value:.2f} {unit} | {'yes' if reached else 'no'} |"


def growth_goals(growth: dict[str, float]) -> str:
    callbacks, page, last = growth["callbacks"], growth["page"], growth["last page"]
    return "\n".join(GOALS_HEAD + [
        goal("callbacks with 10 million rows: at least 0.6 x those with 100 thousand", callbacks, "x", callbacks >= 0.6),
        goal("a page with 10 million rows: at most 1.3 x the time with 100 thousand", page, "x", page <= 1.3),
        goal("the last page of a group of a million: at most 1.3 x the time of the first", last, "x", last <= 1.3),
    ])


def goals(results: Results, start: list[float]) -> str:
    """What this service sets out to be, and what it was in this run."""

    def p99(kind: str, connections: int, name: str = SERVICE) -> float:
        return median(f.p99 for f in results[(kind, connections)][name]) / 1000

    def peak(kind: str, connections: int) -> float:
        return max(f.rss for f in results[(kind, connections)][SERVICE])

    lines = list(GOALS_HEAD)

    def line(text: str, value: float | None, unit: str, reached: bool) -> None:
        # None: that contender did not run.
        if value is not None:
            lines.append(goal(text, value, unit, reached))

    def at_least(kind: str, connections: int, other: str, least: float) -> None:
        value = ratio(results, kind, connections, other)
        text = f"{KINDS[kind]}, {connections} connections: at least {least} x {other}"
        line(text, value, "x", value is not None and value >= least)

    at_least("callback", 64, FASTIFY, 3.0)
    at_least("callback", 64, PGBENCH, 1.7)
    at_least("callback", 64, CEILING, 0.5)
    at_least("callback", 256, FASTIFY, 3.5)
    value = p99("callback", 256)
    line("callbacks, 256 connections: p99 below 30 ms", value, "ms", value < 30)
    at_least("callback", 2, PGBENCH, 0.85)
    for peer in (FASTIFY, "FastAPI + asyncpg", "poem + sqlx"):
        at_least("callback", 2, peer, 1.0)
    at_least("member", 64, FASTIFY, 2.0)
    at_least("member", 64, PGBENCH, 1.0)
    at_least("page", 64, FASTIFY, 3.0)
    value = peak("callback", 256)
    line("callbacks, 256 connections: at most 64 MiB", value, "MiB", value <= 64)
    value = median(start)
    line("start to the first answer, with the database there: at most 0.5 s", value, "s", value <= 0.5)
    return "\n".join(lines)


COLORS = {
    SERVICE: "#0b6e4f",
    PGBENCH: "#7d8597",
    "poem + sqlx": "#c97b2a",
    FASTIFY: "#3b6fb6",
    "FastAPI + asyncpg": "#9c4f96",
}


def chart(results: Results) -> str:
    """Callbacks per second by connections, a group of bars for each."""
    groups = [n for kind, n in results if kind == "callback"]
    names = [name for name in COLORS if name in results[("callback", groups[0])]]
    most = max(rate(results, "callback", n, name) or 0 for n in groups for name in names)
    width, height, left, top, bottom = 860, 380, 64, 56, 52
    plot = height - top - bottom
    group_width = (width - left - 16) / len(groups)
    bar = group_width * 0.84 / len(names)
    step = next(s for s in (1000, 2000, 5000, 10000, 20000, 50000) if most / s <= 6)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        "<title>Callbacks per second by connections</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="20" font-size="14" font-weight="600" fill="#1c1f24">'
        "Callbacks per second, by connections</text>",
    ]
    x = float(left)
    for name in names:
        parts.append(f'<rect x="{x:.0f}" y="31" width="11" height="11" fill="{COLORS[name]}"/>')
        parts.append(f'<text x="{x + 16:.0f}" y="41" fill="#1c1f24">{name}</text>')
        x += 40 + 6.6 * len(name)
    for value in range(0, int(most) + step, step):
        y = top + plot - plot * value / (most * 1.05)
        if y < top - 4:
            break
        parts.append(f'<line x1="{left}" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e6ea"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#4a5058">{thousands(value)}</text>')
    for group, connections in enumerate(groups):
        begin = left + group_width * (group + 0.08)
        for place, name in enumerate(names):
            value = rate(results, "callback", connections, name) or 0
            tall = plot * value / (most * 1.05)
            parts.append(
                f'<rect x="{begin + bar * place:.1f}" y="{top + plot - tall:.1f}" width="{bar - 2:.1f}" '
                f'height="{tall:.1f}" fill="{COLORS[name]}"><title>{name}, {connections} connections: '
                f"{thousands(value)} per second</title></rect>"
            )
        middle = begin + bar * len(names) / 2
        parts.append(f'<text x="{middle:.1f}" y="{height - 28}" text-anchor="middle" fill="#1c1f24">{connections}</text>')
    parts.append(f'<text x="{width / 2:.0f}" y="{height - 8}" text-anchor="middle" fill="#4a5058">connections</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)
