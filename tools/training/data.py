"""Training samples for long context: books and synthetic retrieval tasks as token ids (ChatML).

A sample is a sequence of fixed length,
    [system] user {intro, haystack, question} assistant {answer} (user {q} assistant {answer})*
with a mask of the same length: 0 = no loss, 1 = haystack (language-model loss, small weight),
2 = answer (full weight).
"""

import json
import random
import re

import numpy as np
from tokenizers import Tokenizer

from tasks import task

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SYSTEMS = [
    "You are a helpful assistant.",
    "Answer the question using only the text.",
    "You read long documents and answer questions about them exactly.",
    "You are a careful assistant with a perfect memory.",
]
NOISE = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
BEFORE_QUESTION = [
    "",
    "",
    "",
    "Question: ",
    "Based on the text above: ",
    "According to the text: ",
    "Now answer: ",
]
END_OF_TURN = 2
# Kinds of training samples, with their weights.
KINDS = {"needles": 46, "lines": 13, "json": 13, "table": 6, "vt_train": 9, "copy": 7, "book": 6}
EVAL_KINDS = [
    "single",
    "facts",
    "facts_ood",
    "multikey",
    "multivalue",
    "multiquery",
    "lines",
    "json",
    "vt",
    "vt_value",
    "copy",
]


class Data:
    def __init__(self, tokenizer_json, books, chats=None):
        """chats: a file of short {"q": ..., "a": ...} lines, needed for rows of 2048 tokens."""
        self.t = Tokenizer.from_file(tokenizer_json)
        self.books = np.load(books)["tok"]
        pieces = [self.t.id_to_token(i) or "" for i in range(self.t.get_vocab_size())]
        ends = np.array([bool(re.search(r'[.!?]["\')âĢĿĻ]*$', s)) for s in pieces])
        opens = np.array([s[:1] in "ĠĊ" and s != "" for s in pieces])
        # A sentence starts (with its space) at books[bound].
        self.bound = np.nonzero(ends[self.books[:-1]] & opens[self.books[1:]])[0] + 1
        self.newline = np.array(["Ċ" in s for s in pieces])
        self.chats = []
        if chats:
            with open(chats) as f:
                self.chats = [json.loads(line) for line in f]

    def encode(self, s):
        return self.t.encode(s, add_special_tokens=False).ids

    def decode(self, ids):
        return self.t.decode([int(i) for i in ids], skip_special_tokens=False)

    def book(self, r, n):
        """n tokens of a book from the start of a sentence; returns them and where they start."""
        while True:
            s = int(self.bound[r.randrange(len(self.bound))])
            if s + n < len(self.books):
                return self.books[s : s + n].astype(np.int64), s

    def insert(self, r, n, needles, noise, depths):
        """n tokens in all, with the needles at sentence boundaries nearest to their depths."""
        encoded = [self.encode(" " + x) for x in needles]
        m = n - sum(map(len, encoded))
        if m < 64:
            raise ValueError("too many needles")
        if noise:
            unit = self.encode(NOISE)
            hay = np.array((unit * (m // len(unit) + 1))[:m])
            bounds = np.arange(0, m - len(unit), len(unit)) if m > 2 * len(unit) else np.array([0])
        else:
            hay, start = self.book(r, m)
            lo, hi = np.searchsorted(self.bound, [start, start + m])
            bounds = self.bound[lo:hi] - start
        places = [np.searchsorted(bounds, depth * m) for depth in depths]
        places = [int(bounds[min(int(j), len(bounds) - 1)]) for j in places]
        ids, mask, done, hay_mask = [], [], 0, 0 if noise else 1
        for i in sorted(range(len(encoded)), key=lambda i: (places[i], i)):
            ids += [hay[done : places[i]], np.array(encoded[i])]
            mask += [np.full(places[i] - done, hay_mask), np.zeros(len(encoded[i]))]
            done = places[i]
        ids.append(hay[done:])
        mask.append(np.full(m - done, hay_mask))
        return np.concatenate(ids), np.concatenate(mask).astype(np.uint8)

    def opening(self, r, system=None):
        if system is None:
            x = r.random()
            system = SYSTEM if x < 0.6 else "" if x < 0.75 else r.choice(SYSTEMS)
        turn = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        return turn + "<|im_start|>user\n"

    def turns(self, r, question, first, separator):
        """Token ids of one question, up to where the assistant speaks, and of its answer."""
        q, prefix, value, suffix = question
        start = separator + r.choice(BEFORE_QUESTION) if first else "\n<|im_start|>user\n"
        return (
            self.encode(start + q + "<|im_end|>\n<|im_start|>assistant\n"),
            self.encode(prefix + value + suffix + "<|im_end|>"),
        )

    def book_sample(self, r, length):
        """Plain text in which some passages come back later: long-range copying."""
        ids, _ = self.book(r, length)
        ids = ids.copy()
        mask = np.ones(length, np.uint8)
        for _ in range(r.randrange(0, 5)):
            n = r.randrange(100, min(500, length // 8))
            a = r.randrange(0, length // 2 - n)
            b = r.randrange(length // 2, length - n)
            ids[b : b + n] = ids[a : a + n]
            mask[b : b + 8] = 0  # what begins a repetition cannot be foreseen
            mask[b + 8 : b + n] = 1
        return ids.astype(np.uint16), mask

    def sample(self, r, length, kind=None):
        kind = kind or r.choice([k for k, weight in KINDS.items() for _ in range(weight)])
        if kind == "book":
            return self.book_sample(r, length)
        x = r.random()
        many = 1 if x < 0.15 else r.randrange(2, 10) if x < 0.4 else r.randrange(10, 34)
        many = max(1, min(many, length // 400))
        many = min(many, {"json": 14, "copy": 12}.get(kind, many))
        per_question = {"json": 150, "copy": 120, "vt_train": 120}.get(kind, 75)
        for _ in range(5):
            reserve = many * per_question + 220
            if reserve > length // 2:
                many = max(1, many // 2)
                continue
            try:
                hay, hay_mask, intro, questions, sep = task(self, r, kind, length - reserve, many)
            except (ValueError, IndexError):
                continue
            r.shuffle(questions)
            ids = self.encode(self.opening(r) + intro)
            mask = [0] * len(ids)
            ids += list(map(int, hay))
            mask += list(map(int, hay_mask))
            answered = False
            for i, question in enumerate(questions[:many]):
                asked, answer = self.turns(r, question, i == 0, sep)
                if len(ids) + len(asked) + len(answer) > length:
                    break
                ids += asked + answer
                mask += [0] * len(asked) + [2] * len(answer)
                answered = True
            if not answered:
                continue
            ids += [END_OF_TURN] * (length - len(ids))
            mask += [0] * (length - len(mask))
            return np.array(ids[:length], np.uint16), np.array(mask[:length], np.uint8)
        return self.sample(r, length, "book")

    def chat_row(self, r, length):
        ids, mask = [], []
        while len(ids) < length:
            c = r.choice(self.chats)
            asked = self.encode(
                f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{c['q']}<|im_end|>\n<|im_start|>assistant\n"
            )
            answer = self.encode(c["a"] + "<|im_end|>\n")
            ids += asked + answer
            mask += [0] * len(asked) + [2] * len(answer)
        return np.array(ids[:length], np.uint16), np.array(mask[:length], np.uint8)

    def batch(self, seed, rows, length):
        """Rows of up to 2048 tokens are for distillation: chat and plain books, half and half."""
        r = random.Random(seed)
        samples = []
        for _ in range(rows):
            if length > 2048:
                samples.append(self.sample(r, length))
            elif r.random() < 0.5:
                samples.append(self.chat_row(r, length))
            else:
                samples.append(self.sample(r, length, "book"))
        return np.stack([x[0] for x in samples]), np.stack([x[1] for x in samples])

    def eval_item(self, seed, kind, length, many):
        """A prefix, up to the question, and independent questions, each asked in the first turn."""
        r = random.Random(seed)
        n = length - (700 if kind == "json" else 600)
        hay, _, intro, questions, sep = task(self, r, kind, n, many)
        r.shuffle(questions)
        prefix_ids = self.encode(self.opening(r, SYSTEM) + intro) + list(map(int, hay))
        items = []
        for q, prefix, value, suffix in questions[:many]:
            answer = prefix + value + suffix
            encoded = self.t.encode(answer, add_special_tokens=False)
            a, b = len(prefix), len(prefix) + len(value)
            items.append(
                {
                    "q": q,
                    "qi": self.encode(sep + q + "<|im_end|>\n<|im_start|>assistant\n"),
                    "ai": self.encode(answer + "<|im_end|>"),
                    "span": [i for i, (x, y) in enumerate(encoded.offsets) if y > a and x < b],
                    "value": value,
                    "ans": answer,
                }
            )
        return prefix_ids, items
