"""Preparation: tokenizer.json from the GGUF, and the books as token ids, ready for training."""

import os
import re
import subprocess

import numpy as np
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

G = os.environ.get("BASE_GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf")
# A clone of github.com/MichaelPaulukonis/common-corpus.
P = os.environ.get("CORPUS_GIT", "common-corpus/.git")


def field(r, k):
    return r.fields[k].contents()


def build_tok():
    r = GGUFReader(G)
    toks = field(r, "tokenizer.ggml.tokens")
    types = field(r, "tokenizer.ggml.token_type")
    merges = field(r, "tokenizer.ggml.merges")
    vocab = {t: i for i, t in enumerate(toks)}
    t = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges]))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(
        [
            AddedToken(toks[i], special=True, normalized=False)
            for i in range(len(toks))
            if types[i] == 3
        ]
    )
    t.save("tokenizer.json")
    return t


def books(t):
    names = (
        subprocess.run(
            ["git", "--git-dir=" + P, "ls-tree", "-r", "--name-only", "-z", "HEAD"],
            capture_output=True,
        )
        .stdout.decode("utf8", "replace")
        .split("\0")
    )
    held = [
        "pride.and.prejudice",
        "moby.dick",
        "leaves.of.grass",
        "portrait.of.the.artist",
        "the.land.of.strong.men",
        "dubliners",
    ]
    # Public domain only: literature from before 1929 and texts of the US government; not the
    # recent novels, film scripts and mail that the collection holds too.
    skip = (
        "cyberpunk",
        "filmscripts",
        "spam",
        "sentences",
        "norton",
        "computerculture",
        "finnegans",
        "factorial",
        "hyphenation",
        "assimilation of",
        "humorous.verse",
        "rutabaga",
    )
    train = []
    ho = []
    log = []
    for n in names:
        low = n.lower()
        if (
            not n
            or any(s in low for s in skip)
            or low.endswith((".js", ".json", ".md", ".xml", ".html"))
        ):
            continue
        d = subprocess.run(
            ["git", "--git-dir=" + P, "show", "HEAD:" + n], capture_output=True
        ).stdout
        if len(d) < 60000:
            continue
        try:
            s = d.decode("utf8")
        except UnicodeDecodeError:
            s = d.decode("cp1252", "replace")
        s = s.replace("\r\n", "\n").replace("\r", "\n")
        m = re.search(r"\*\*\* ?START OF.*?\*\*\*", s)
        s = s[m.end() :] if m else s
        m = re.search(r"\*\*\* ?END OF", s)
        s = s[: m.start()] if m else s
        # unwrap hard line breaks inside paragraphs (verse keeps its short lines)
        paras = re.split(r"\n\s*\n", s)
        out = []
        for p in paras:
            lines = [line.rstrip() for line in p.split("\n") if line.strip()]
            if not lines:
                continue
            prose = np.mean([len(line) for line in lines]) > 50
            out.append((" " if prose else "\n").join(line.strip() for line in lines))
        s = "\n\n".join(out)
        s = re.sub(r"[ \t]+", " ", s)
        ids = t.encode(s, add_special_tokens=False).ids
        a = np.array(ids, dtype=np.uint16)
        h = any(k in low for k in held)
        (ho if h else train).append(a)
        log.append((len(a), "HELD" if h else "train", n))
    for entry in sorted(log, reverse=True):
        print(*entry)
    for nm, lst in (("train", train), ("held", ho)):
        np.savez_compressed(
            f"books_{nm}.npz",
            tok=np.concatenate(lst),
            off=np.cumsum([0] + [len(x) for x in lst]).astype(np.int64),
        )
        print(nm, sum(map(len, lst)), os.path.getsize(f"books_{nm}.npz"))


def compare_with_llama_cpp(t):
    from llama_cpp import Llama

    L = Llama(G, vocab_only=True, verbose=False)
    for s in [
        "Hello world 12345, it's 3.14!\n\n  two  spaces\tTab",
        "<|im_start|>user\nline torpid-kid: REGISTER_CONTENT is <24169><|im_end|>\n",
        "a1b2c3d4-e5f6 “quoted” café—naïve 北京 \r\n x  \n y",
        ' {"key": "value", "a":1}',
        "VAR XQZ = 77",
    ]:
        a = t.encode(s, add_special_tokens=False).ids
        b = L.tokenize(s.encode(), add_bos=False, special=True)
        print(a == b, t.decode(a, skip_special_tokens=False) == s, len(a))
        if a != b:
            print(a, b)


if __name__ == "__main__":
    tokenizer = build_tok()
    compare_with_llama_cpp(tokenizer)
    books(tokenizer)
