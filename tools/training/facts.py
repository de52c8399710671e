"""Single sentences with something to find in them, and the questions that ask for it.

Each maker returns (sentence, [(question, answer prefix, value, answer suffix)], key). Two facts with
one key would contradict each other.
"""

from words import (
    ACT,
    ADJ,
    ANIMAL,
    CITIES,
    FOOD,
    JOB,
    LOC,
    NADJ,
    NNOUN,
    OBJ,
    TOPIC,
    date,
    digits,
    hyphenated,
    person,
    pseudo_word,
    time_of_day,
    uuid4,
)


def f_keep(r):
    p, a, o, place = person(r), r.choice(ADJ), r.choice(OBJ), r.choice(LOC)
    return (
        f"{p} keeps the {a} {o} {place}.",
        [(f"Where does {p} keep the {a} {o}?", f"{p} keeps the {a} {o} ", place, ".")],
        p + a + o,
    )


def f_born(r):
    p, c, d = person(r), r.choice(CITIES), date(r)
    return (
        f"{p} was born in {c} on {d}.",
        [
            (f"Where was {p} born?", f"{p} was born in ", c, "."),
            (f"When was {p} born?", f"{p} was born on ", d, "."),
        ],
        "born" + p,
    )


def f_fav(r):
    cat, vals = r.choice(
        [("color", ADJ), ("city", CITIES), ("food", FOOD), ("animal", ANIMAL), ("number", None)]
    )
    p = person(r)
    v = r.choice(vals) if vals else digits(r, 3)
    return (
        f"The favorite {cat} of {p} is {v}.",
        [(f"What is the favorite {cat} of {p}?", f"The favorite {cat} of {p} is ", v, ".")],
        cat + p,
    )


def f_phone(r):
    p = person(r)
    v = f"{digits(r, 3)}-{digits(r, 4)}"
    return (
        f"The telephone number of {p} is {v}.",
        [(f"What is the telephone number of {p}?", f"The telephone number of {p} is ", v, ".")],
        "tel" + p,
    )


def f_train(r):
    c, t, n = r.choice(CITIES), time_of_day(r), str(r.randrange(1, 40))
    return (
        f"The train to {c} leaves at {t} from platform {n}.",
        [
            (f"At what time does the train to {c} leave?", f"The train to {c} leaves at ", t, "."),
            (
                f"From which platform does the train to {c} leave?",
                f"The train to {c} leaves from platform ",
                n,
                ".",
            ),
        ],
        "train" + c,
    )


def f_job(r):
    p, j, c = person(r), r.choice(JOB), r.choice(CITIES)
    return (
        f"{p} works as a {j} in {c}.",
        [
            (f"What is the job of {p}?", f"{p} works as a ", j, "."),
            (f"In which city does {p} work?", f"{p} works in ", c, "."),
        ],
        "job" + p,
    )


def f_meet(r):
    t, d, n = r.choice(TOPIC), date(r), str(r.randrange(100, 999))
    return (
        f"The meeting about the {t} takes place on {d} in room {n}.",
        [
            (
                f"In which room does the meeting about the {t} take place?",
                f"The meeting about the {t} takes place in room ",
                n,
                ".",
            ),
            (
                f"When does the meeting about the {t} take place?",
                f"The meeting about the {t} takes place on ",
                d,
                ".",
            ),
        ],
        "meet" + t,
    )


def f_pet(r):
    p, a, n = person(r), r.choice(ANIMAL), pseudo_word(r).capitalize()
    return (
        f"The {a} of {p} is called {n}.",
        [(f"What is the {a} of {p} called?", f"The {a} of {p} is called ", n, ".")],
        a + p,
    )


def f_paid(r):
    p, a, o, n = person(r), r.choice(ADJ), r.choice(OBJ), digits(r, r.choice([2, 3, 4]))
    return (
        f"{p} paid {n} crowns for the {a} {o}.",
        [
            (
                f"How much did {p} pay for the {a} {o}?",
                f"{p} paid ",
                n,
                f" crowns for the {a} {o}.",
            ),
            (f"Who paid {n} crowns for the {a} {o}?", "", p, f" paid {n} crowns for the {a} {o}."),
        ],
        "paid" + p + a + o,
    )


def f_code(r):
    pl = (
        r.choice(
            [
                "the vault",
                "the tower",
                "the north gate",
                "the cellar",
                "the archive",
                "the laboratory",
                "the greenhouse",
                "the boat house",
            ]
        )
        + " in "
        + r.choice(CITIES)
    )
    v = digits(r)
    k = r.choice(["access code to", "combination of", "secret number of"])
    return (
        f"The {k} {pl} is {v}.",
        [(f"What is the {k} {pl}?", f"The {k} {pl} is ", v, ".")],
        k + pl,
    )


def f_pw(r):
    p = person(r)
    v = r.choice([f"{r.choice(NADJ)}-{r.choice(NNOUN)}-{r.randrange(10, 99)}", pseudo_word(r)])
    return (
        f"The password of {p} is {v}.",
        [(f"What is the password of {p}?", f"The password of {p} is ", v, ".")],
        "pw" + p,
    )


def f_proj(r):
    w, p = pseudo_word(r).capitalize(), person(r)
    return (
        f"Project {w} is led by {p}.",
        [(f"Who leads Project {w}?", f"Project {w} is led by ", p, ".")],
        "pr" + w,
    )


def f_cap(r):
    a, b = pseudo_word(r).capitalize(), pseudo_word(r).capitalize()
    return (
        f"The capital of {a} is {b}.",
        [(f"What is the capital of {a}?", f"The capital of {a} is ", b, ".")],
        "cap" + a,
    )


def f_ship(r):
    s, c, y = pseudo_word(r).capitalize(), r.choice(CITIES), str(r.randrange(1600, 1990))
    return (
        f"The ship {s} sank near {c} in {y}.",
        [
            (f"In which year did the ship {s} sink?", f"The ship {s} sank in ", y, "."),
            (f"Near which city did the ship {s} sink?", f"The ship {s} sank near ", c, "."),
        ],
        "ship" + s,
    )


def f_spoon(r):
    p, n, i = person(r), str(r.randrange(2, 40)), r.choice(FOOD)
    return (
        f"The recipe of {p} needs {n} spoons of {i}.",
        [
            (
                f"How many spoons of {i} does the recipe of {p} need?",
                f"The recipe of {p} needs ",
                n,
                f" spoons of {i}.",
            )
        ],
        "sp" + p + i,
    )


def f_pass(r):
    v = digits(r, 5)
    return (
        f"The pass key is {v}. Remember it. {v} is the pass key.",
        [("What is the pass key?", "The pass key is ", v, ".")],
        "passkey",
    )


FACTS = [
    f_keep,
    f_born,
    f_fav,
    f_phone,
    f_train,
    f_job,
    f_meet,
    f_pet,
    f_paid,
    f_code,
    f_pw,
    f_proj,
    f_cap,
    f_ship,
    f_spoon,
    f_pass,
]


# Never used in training: does the model look things up, or has it learnt our wordings?
def o_best(r):
    c, a = r.choice(CITIES), r.choice(ACT)
    return (
        f"The best thing to do in {c} is {a}.",
        [(f"What is the best thing to do in {c}?", f"The best thing to do in {c} is ", a, ".")],
        "best" + c,
    )


def o_locker(r):
    p, n = person(r), digits(r, 3)
    return (
        f"For the whole season {p} was given locker {n}, close to the exit.",
        [(f"Which locker was given to {p}?", f"{p} was given locker ", n, ".")],
        "lk" + p,
    )


def o_inherit(r):
    p, a, o, q = person(r), r.choice(ADJ), r.choice(OBJ), person(r)
    return (
        f"When the will was read, {p} inherited a {a} {o} from {q}.",
        [(f"What did {p} inherit?", f"{p} inherited a ", f"{a} {o}", ".")],
        "inh" + p,
    )


def o_bus(r):
    c, n = r.choice(CITIES), digits(r, 3)
    return (
        f"To reach the harbor of {c} one takes bus {n}.",
        [
            (
                f"Which bus goes to the harbor of {c}?",
                f"To reach the harbor of {c} one takes bus ",
                n,
                ".",
            )
        ],
        "bus" + c,
    )


OOD = [o_best, o_locker, o_inherit, o_bus]


def magic(r, ty=None, keyf=None):
    ty = ty or r.choices(["number", "uuid", "word", "city"], [6, 1, 1, 1])[0]
    key = (
        keyf
        or r.choice(
            [
                hyphenated,
                hyphenated,
                pseudo_word,
                lambda r: r.choice(CITIES),
                uuid4 if ty == "number" and r.random() < 0.3 else hyphenated,
            ]
        )
    )(r)
    val = {
        "number": lambda: digits(r, 7) if r.random() < 0.8 else digits(r),
        "uuid": lambda: uuid4(r),
        "word": lambda: hyphenated(r),
        "city": lambda: r.choice(CITIES),
    }[ty]()
    return ty, key, val


def magic_needle(r, ty, key, val, tpl=None):
    tpl = tpl if tpl is not None else r.randrange(3)
    return [
        f"One of the special magic {ty}s for {key} is: {val}.",
        f"The special magic {ty} for {key} is {val}.",
        f"Remember that the special magic {ty} for {key} is: {val}.",
    ][tpl]


def magic_question(r, ty, key, val):
    k = r.randrange(4)
    if k == 0:
        return (
            f"What is the special magic {ty} for {key} mentioned in the provided text?",
            f"The special magic {ty} for {key} mentioned in the provided text is ",
            val,
            ".",
        )
    if k == 1:
        return (
            f"What is the special magic {ty} for {key}?",
            f"The special magic {ty} for {key} is ",
            val,
            ".",
        )
    if k == 2:
        return (
            f"What is the special magic {ty} for {key}? Answer with the {ty} only.",
            "",
            val,
            "",
        )
    return (
        f"Find the special magic {ty} for {key} in the text.",
        f"The special magic {ty} for {key} is ",
        val,
        ".",
    )
