//! The ways of splitting text that llama.cpp has names for.

use serde_json::{Value, json};

use super::super::byte_level::{SPLIT, byte_level};

/// How text is split before bytes are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Splitting {
    /// The name that is written, and others for the same.
    pub names: &'static [&'static str],
    /// The expressions of the file, one after the other.
    pub patterns: &'static [&'static str],
    /// Whether each digit is a piece of its own, before all else.
    pub digits: bool,
    /// Whether GPT-2's expression follows, which a `ByteLevel` has within.
    pub gpt2: bool,
    /// Whether a piece that is a token stays one, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether a text begins with the first token where a file does not say.
    pub add_bos: bool,
    /// Whether published tokenizers of this name normalize text, which files do not say.
    pub nfc: bool,
    /// Whether llama.cpp splits exactly as these expressions do.
    pub exact: bool,
}

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const DEEPSEEK: &[&str] = &[
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
];

const PLAIN: Splitting = Splitting {
    names: &[],
    patterns: &[],
    digits: false,
    gpt2: false,
    ignore_merges: false,
    add_bos: false,
    nfc: false,
    exact: true,
};

impl Splitting {
    /// All that Firebox knows.
    const ALL: [Self; 8] = [
        // What Firebox trains.
        Self {
            names: &["smaug-bpe", "dbrx", "chatglm-bpe"],
            patterns: &[SPLIT],
            ..PLAIN
        },
        Self {
            names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
            patterns: &[SPLIT],
            ignore_merges: true,
            add_bos: true,
            ..PLAIN
        },
        Self {
            names: &["glm4"],
            patterns: &[SPLIT],
            ignore_merges: true,
            ..PLAIN
        },
        Self {
            names: &["qwen2", "deepseek-r1-qwen"],
            patterns: &[QWEN2],
            nfc: true,
            ..PLAIN
        },
        Self {
            names: &["gpt-2", "olmo", "mpt", "phi-2"],
            gpt2: true,
            ..PLAIN
        },
        Self {
            names: &["refact", "starcoder", "smollm", "command-r", "codeshell"],
            digits: true,
            gpt2: true,
            ..PLAIN
        },
        Self {
            names: &["deepseek-v3"],
            patterns: DEEPSEEK,
            ..PLAIN
        },
        Self {
            names: &["gpt-4o"],
            patterns: &[O200K],
            exact: false,
            ..PLAIN
        },
    ];

    /// That of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.names.contains(&name))
    }

    /// The names that [`named`](Self::named) knows.
    pub fn names() -> Vec<&'static str> {
        Self::ALL
            .iter()
            .flat_map(|known| known.names)
            .copied()
            .collect()
    }

    /// That of a `pre_tokenizer` of a tokenizer.json.
    pub fn of(pre_tokenizer: &Value, ignore_merges: bool) -> Option<Self> {
        let found = Steps::of(pre_tokenizer)?;
        Self::ALL.into_iter().find(|known| {
            let rest = (known.digits, known.gpt2, known.ignore_merges);
            known.patterns == found.patterns && rest == (found.digits, found.gpt2, ignore_merges)
        })
    }

    /// The `pre_tokenizer` of a tokenizer.json.
    pub fn to_json(self) -> Value {
        let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        let digits = self
            .digits
            .then(|| json!({ "type": "Digits", "individual_digits": true }));
        let mut steps: Vec<Value> = digits.into_iter().collect();
        steps.extend(self.patterns.iter().map(split));
        steps.push(byte_level(self.gpt2));
        match steps.as_slice() {
            [one] => one.clone(),
            _ => json!({ "type": "Sequence", "pretokenizers": steps }),
        }
    }
}

/// What a `pre_tokenizer` does.
#[derive(Debug, Default)]
struct Steps {
    patterns: Vec<String>,
    digits: bool,
    gpt2: bool,
}

impl Steps {
    /// `None` for anything that no [`Splitting`] does.
    fn of(pre_tokenizer: &Value) -> Option<Self> {
        let one = std::slice::from_ref(pre_tokenizer);
        let steps = match pre_tokenizer["type"].as_str()? {
            "Sequence" => pre_tokenizer["pretokenizers"].as_array()?,
            _ => one,
        };
        let (last, before) = steps.split_last()?;
        let mut found = Self::default();
        for step in before {
            match step["type"].as_str()? {
                "Digits" if found.patterns.is_empty() && !found.digits => {
                    found.digits = step["individual_digits"].as_bool()?;
                }
                "Split" if step["behavior"] == "Isolated" && step["invert"] == false => {
                    // Some files have the characters, others their names.
                    let pattern = step["pattern"]["Regex"].as_str()?;
                    let pattern = pattern.replace('\r', r"\r").replace('\n', r"\n");
                    found.patterns.push(pattern);
                }
                _ => return None,
            }
        }
        found.gpt2 = last["use_regex"].as_bool().unwrap_or(true);
        let bytes = last["type"] == "ByteLevel" && last["add_prefix_space"] == false;
        bytes.then_some(found)
    }
}
