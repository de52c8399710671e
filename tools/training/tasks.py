"""The tasks: a haystack of about n tokens with something to find in it, and questions about it.

Every task returns (ids, mask, intro, questions, separator): the haystack's token ids, its mask (1 =
ordinary text that may also be learnt from, 0 = not), the words before it, (question, answer prefix,
value, answer suffix) for each question, and what stands between haystack and question.
"""

import numpy as np

from facts import FACTS, OOD, magic, magic_needle, magic_question
from words import CITIES, FIRST, JOB, LAST, digits, hyphenated, person, pseudo_word, uuid4

INTRO = [
    "",
    "",
    "Read the following text. I will ask you about it afterwards.\n\n",
    "Some facts are hidden in the text below. Remember them.\n\n",
    "Below is a long text.\n\n",
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about the numbers afterwards.\n",
]


class Needles:
    """Collects needle sentences, their depths and the questions about them."""

    def __init__(self, r, n):
        self.r = r
        self.cap = max(1, n // 120)  # one needle per 120 tokens at most
        self.sentences, self.questions, self.used = [], [], set()
        self.ordered = []  # groups of needles whose order matters
        self.after_depths = []  # questions to be written once the depths are drawn

    def fact(self, maker):
        for _ in range(20):
            sentence, questions, key = maker(self.r)
            if key not in self.used:
                self.used.add(key)
                self.sentences.append(sentence)
                self.questions.append(self.r.choice(questions))
                return

    def magic(self, kind=None, key_maker=None, template=None, ask=True):
        while True:
            kind_, key, value = magic(self.r, kind, key_maker)
            if (kind_, key) not in self.used:
                break
        self.used.add((kind_, key))
        self.sentences.append(magic_needle(self.r, kind_, key, value, template))
        if ask:
            self.questions.append(magic_question(self.r, kind_, key, value))
        return key, value

    def mixed(self, many):
        """Needles of one or several kinds, as many as 48, among which the asked ones must be told apart."""
        r = self.r
        total = min(self.cap, max(many, r.choice([1, 4, 8, 16, 32, 48])))
        mode = r.random()
        template = r.randrange(3)
        kind = r.choice(["number", "number", "uuid", "word"])
        makers = r.sample(FACTS, r.randrange(2, 6))
        for _ in range(total):
            if mode < 0.35:
                self.magic(kind if r.random() < 0.9 else None, None, template)
            elif mode < 0.75:
                self.fact(r.choice(makers) if r.random() < 0.7 else r.choice(FACTS))
            elif r.random() < 0.5:
                self.magic()
            else:
                self.fact(r.choice(FACTS))

    def values_of_one_key(self, count):
        r = self.r
        while True:
            key = hyphenated(r)
            if ("number", key) not in self.used:
                break
        self.used.add(("number", key))
        values, members = [], []
        for _ in range(count()):
            value = digits(r, 7)
            members.append(len(self.sentences))
            values.append(value)
            self.sentences.append(magic_needle(r, "number", key, value, 0))
        self.ordered.append(members)
        self.after_depths.append((key, values, r.random()))

    def several_keys(self, count):
        r = self.r
        pairs = [self.magic("number", hyphenated, 0, ask=False) for _ in range(count())]
        r.shuffle(pairs)
        names = ", ".join(k for k, _ in pairs[:-1]) + ", and " + pairs[-1][0]
        if r.random() < 0.5:
            question = f"What are the special magic numbers for {names}?"
            self.questions.append((question, "", ", ".join(f"{k}: {v}" for k, v in pairs), "."))
        else:
            self.questions.append(
                (
                    f"What are all the special magic numbers for {names} mentioned in the provided text?",
                    f"The special magic numbers for {names} mentioned in the provided text are ",
                    ", ".join(v for _, v in pairs[:-1]) + ", and " + pairs[-1][1],
                    ".",
                )
            )

    def variable_chain(self, kind):
        """VAR A = 12345. VAR B = VAR A. ... with questions for the list or for the value at the end."""
        r = self.r
        hops = 4 if kind != "vt_train" else r.randrange(1, 6)
        names = []
        while len(names) < hops + 1:
            name = "".join(r.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(5))
            if name not in self.used:
                self.used.add(name)
                names.append(name)
        value = digits(r, 5)
        first = len(self.sentences)
        self.sentences.append(f"VAR {names[0]} = {value}.")
        self.sentences += [f"VAR {b} = VAR {a}." for a, b in zip(names, names[1:], strict=False)]
        self.ordered.append(list(range(first, len(self.sentences))))
        listing = (
            f"Find all variables that are assigned the value {value} in the text above.",
            f"{len(names)} variables are assigned the value {value}, they are: ",
            ", ".join(names),
            ".",
        )
        i = r.randrange(1, len(names)) if kind == "vt_train" else len(names) - 1
        back = names[: i + 1][::-1]
        steps = ", ".join(f"VAR {a} = VAR {b}" for a, b in zip(back, back[1:], strict=False))
        resolved = (
            f"What is the value of VAR {back[0]}?",
            "",
            f"{steps}, VAR {names[0]} = {value}. The value of VAR {back[0]} is {value}",
            ".",
        )
        if kind != "vt_value":
            self.questions.append(listing)
        if kind == "vt_value" or (kind == "vt_train" and r.random() < 0.8):
            self.questions.append(resolved)

    def depths(self):
        """A depth in [0, 1) for every needle; members of an ordered group ascend."""
        depths = [self.r.random() for _ in self.sentences]
        for members in self.ordered:
            ascending = sorted(depths[i] for i in members)
            for i, depth in zip(members, ascending, strict=True):
                depths[i] = depth
        for key, values, draw in self.after_depths:
            listed = ", ".join(values[:-1]) + ", and " + values[-1]
            if draw < 0.5:
                question = f"What are all the special magic numbers for {key} mentioned in the provided text?"
                prefix = f"The special magic numbers for {key} mentioned in the provided text are "
            else:
                question = f"List all special magic numbers for {key}."
                prefix = f"The special magic numbers for {key} are "
            self.questions.append((question, prefix, listed, "."))
        return depths


def needles(data, r, kind, n, many):
    s = Needles(r, n)
    if kind == "single":
        s.magic("number", hyphenated)
    elif kind == "facts":
        for maker in r.sample(FACTS, min(many, len(FACTS))):
            s.fact(maker)
    elif kind == "facts_ood":
        for i in range(many):
            s.fact(OOD[i % len(OOD)])
    elif kind == "multikey":
        template = r.randrange(3)
        for i in range(min(24, s.cap)):
            s.magic("number", hyphenated, template, ask=i < many)
    elif kind == "needles":
        s.mixed(many)
    if kind in ("multivalue", "multiquery") or (kind == "needles" and r.random() < 0.45):
        groups = many if kind != "needles" else r.randrange(1, 5)
        for _ in range(min(groups, max(1, s.cap // 4))):
            if kind == "multivalue" or (kind == "needles" and r.random() < 0.5):
                s.values_of_one_key(lambda: 4 if kind == "multivalue" else r.randrange(2, 5))
            else:
                s.several_keys(lambda: 4 if kind == "multiquery" else r.randrange(2, 5))
    if kind in ("vt", "vt_value", "vt_train"):
        for _ in range(2 if kind != "vt_train" else r.randrange(1, 5)):
            s.variable_chain(kind)
    depths = s.depths()
    noise = kind in ("needles", "vt_train") and r.random() < 0.12
    ids, mask = data.insert(r, n, s.sentences, noise, depths)
    return ids, mask, r.choice(INTRO), s.questions, "\n\n"


def take_rows(data, rows_of, text_of, ids, n):
    """Appends encoded rows to `ids` while they fit into n tokens; returns the rows that did."""
    rows = []
    while True:
        batch = rows_of()
        texts = [text_of(row) for row in batch]
        encoded = data.t.encode_batch(texts, add_special_tokens=False)
        for row, x in zip(batch, encoded, strict=True):
            if len(ids) + len(x.ids) > n:
                return rows
            ids += x.ids
            rows.append(row)


def unasked(ids):
    return np.array(ids), np.zeros(len(ids), np.uint8)


RECORD = "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a '<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of a certain line index. Now the record start:\n\n"
# (line, question, answer prefix)
LONGEVAL = (
    "line {k}: REGISTER_CONTENT is <{v}>",
    "Tell me what is the <REGISTER_CONTENT> in line {k}? I need the number.",
    "The <REGISTER_CONTENT> in line {k} is ",
)
LINES = [
    ("{k}: {v}", "What is the value of {k}?", "The value of {k} is "),
    ("{k} = {v}", "What is {k} equal to?", "{k} = "),
    ("Entry {k} has the value {v}.", "What value does entry {k} have?", "Entry {k} has the value "),
    (
        "| {k} | {v} |",
        "Which number stands in the row of {k}?",
        "The number in the row of {k} is ",
    ),
    ("{k}, phone {v}", "What is the phone number of {k}?", "The phone number of {k} is "),
]


def lines(data, r, kind, n, many):
    """Line retrieval as in LongEval, and in other wordings."""
    style = r.random() if many > 6 or many == 1 else 0.0
    longeval = style < 0.6
    if longeval:
        key_maker = hyphenated
        line, question, prefix = LONGEVAL
    else:
        key_maker = r.choice(
            [
                hyphenated,
                pseudo_word,
                lambda r: digits(r, 4),
                person,
                lambda r: r.choice(CITIES) + " " + str(r.randrange(100, 999)),
            ]
        )
        line, question, prefix = r.choice(LINES)
    used, rows, characters = set(), [], 0
    while characters < n * 6 + 2000:  # more than needed: cut by tokens below
        key = key_maker(r)
        if key in used:
            key = key + "-" + str(r.randrange(10, 999))
            if key in used:
                continue
        used.add(key)
        value = digits(r, 5)
        text = line.format(k=key, v=value)
        rows.append((key, value, text))
        characters += len(text) + 1
        if len(rows) % 64 == 0:
            last = len(data.encode("\n".join(x[2] for x in rows[-64:])))
            if last * len(rows) / 64 > n + 400:
                break
    ids, keep = [], 0
    for x in data.t.encode_batch([x[2] + "\n" for x in rows], add_special_tokens=False):
        if len(ids) + len(x.ids) > n:
            break
        ids += x.ids
        keep += 1
    ids += data.encode("\n")
    asked = r.sample(rows[:keep], min(many, keep))
    questions = [(question.format(k=k), prefix.format(k=k), v, ".") for k, v, _ in asked]
    if longeval and r.random() < 0.6:
        intro = RECORD
    else:
        intro = r.choice(["", "Here is a list of records.\n\n", "Memorize these records:\n\n"])
    return *unasked(ids), intro, questions, "Now the record is over. " if intro is RECORD else "\n"


def json_pairs(data, r, kind, n, many):
    """Key-value retrieval from a JSON object, mostly of UUIDs."""

    def hex8(r):
        return f"{r.getrandbits(32):08x}"

    if many <= 6 or r.random() < 0.6:
        key_maker, value_maker = uuid4, uuid4
    else:
        key_maker, value_maker = r.choice(
            [
                (hyphenated, uuid4),
                (pseudo_word, lambda r: digits(r, 6)),
                (hex8, hex8),
                (hyphenated, hyphenated),
                (person, lambda r: digits(r, 5)),
            ]
        )
    used = set()

    def batch():
        pairs = []
        while len(pairs) < 32:
            key = key_maker(r)
            if key in used:
                key += str(r.randrange(1000))
                if key in used:
                    continue
            used.add(key)
            pairs.append((key, value_maker(r)))
        return pairs

    ids = data.encode("{")
    rows = take_rows(data, batch, lambda row: f'"{row[0]}": "{row[1]}",\n ', ids, n - 4)
    ids += data.encode("}\n")
    questions = []
    for key, value in r.sample(rows, min(many, len(rows))):
        if r.random() < 0.6:
            questions.append((f'Key: "{key}"\nCorresponding value:', '"', value, '"'))
        else:
            question = f'What is the value of the key "{key}" in the JSON object above?'
            questions.append((question, f'The value of "{key}" is "', value, '".'))
    intro = r.choice(
        [
            "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n",
            "JSON data:\n",
            "",
        ]
    )
    return *unasked(ids), intro, questions, "\n"


def table(data, r, kind, n, many):
    """A table of people; one column of one row is asked for."""
    used = set()

    def batch():
        rows = []
        while len(rows) < 32:
            name = r.choice(FIRST) + " " + r.choice(LAST)
            if name in used:
                name = name + " " + pseudo_word(r).capitalize()
                if name in used:
                    continue
            used.add(name)
            city, job, age = r.choice(CITIES), r.choice(JOB), str(r.randrange(18, 90))
            rows.append((name, city, job, age, digits(r, 5)))
        return rows

    ids = data.encode("name | city | job | age | number\n")
    rows = take_rows(data, batch, lambda row: " | ".join(row) + "\n", ids, n)
    questions = []
    for row in r.sample(rows, min(many, len(rows))):
        column = r.randrange(1, 5)
        name = ["", "city", "job", "age", "number"][column]
        questions.append(
            (f"What is the {name} of {row[0]}?", f"The {name} of {row[0]} is ", row[column], ".")
        )
    return *unasked(ids), r.choice(["", "The table lists people.\n\n"]), questions, "\n"


def copy(data, r, kind, n, many):
    """Quote a sentence of the text, or the one after it."""
    hay, start = data.book(r, n)
    lo, hi = np.searchsorted(data.bound, [start, start + n])
    bounds = data.bound[lo:hi] - start
    questions, tries = [], 0
    while len(questions) < many and tries < 400:
        tries += 1
        i = r.randrange(len(bounds) - 3)
        a, b, c = bounds[i], bounds[i + 1], bounds[i + 2]
        if data.newline[hay[a:c]].any():
            continue
        if r.random() < 0.5:
            if not (8 <= b - a <= 50 and 6 <= c - b <= 50):
                continue
            this, following = data.decode(hay[a:b]).strip(), data.decode(hay[b:c]).strip()
            question = f"Which sentence comes right after this one: {this}"
            questions.append((question, "", following, ""))
        else:
            if b - a < 22 or b - a > 70:
                continue
            k = r.randrange(8, 13)
            opening, rest = data.decode(hay[a : a + k]).strip(), data.decode(hay[a + k : b])
            if not rest.startswith(" "):
                continue
            question = f"Quote the sentence of the text that begins with: {opening}"
            questions.append((question, opening, rest, ""))
    return hay, np.ones(n, np.uint8), r.choice(INTRO), questions, "\n\n"


OTHER = {"lines": lines, "json": json_pairs, "table": table, "copy": copy}


def task(data, r, kind, n, many):
    """n: tokens of haystack to be had; many: how many questions are wanted."""
    return OTHER.get(kind, needles)(data, r, kind, n, many)
