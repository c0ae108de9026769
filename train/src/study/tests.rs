use std::fs;

use firebox_console::advice::Advise;

use super::*;

const STUDY: &str = r#"
config = "run.toml"
seeds = [0, 1]
seconds = 60

[[variant]]
name = "mixture"

[[variant]]
name = "dense"
set = ["model.feed_forward=dense"]
"#;

fn load_text(text: &str, equal: Option<Equal>) -> Result<Study, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("study.toml");
    fs::write(&file, text).unwrap();
    load(&file, equal).map_err(|error| {
        assert_eq!(error.exit_code(), 2);
        error
            .to_string()
            .replace(&file.display().to_string(), "FILE")
    })
}

#[test]
fn a_study_is_read() {
    let study = load_text(STUDY, None).unwrap();
    assert_eq!(study.equal, Equal::Seconds(60.0));
    assert_eq!(study.variants[1].set, ["model.feed_forward=dense"]);
    let study = load_text(STUDY, Some(Equal::Tokens(500))).unwrap();
    assert_eq!(study.equal, Equal::Tokens(500));
}

#[test]
fn what_is_wrong_with_a_study_is_said() {
    let wrong = |from: &str, to: &str| {
        assert!(STUDY.contains(from));
        load_text(&STUDY.replace(from, to), None).unwrap_err()
    };
    let cases = [
        (
            "seconds = 60",
            "second = 60",
            "line 4: unknown field `second`",
        ),
        ("seconds = 60", "", "needs one of seconds, tokens and flops"),
        (
            "seconds = 60",
            "seconds = 60\ntokens = 9",
            "needs one of seconds",
        ),
        (
            "seconds = 60",
            "seconds = 0",
            "seconds = 0: must be above 0",
        ),
        ("[0, 1]", "[]", "one or more different numbers"),
        ("[0, 1]", "[3, 3]", "one or more different numbers"),
        (
            "\"dense\"",
            "\"mixture\"",
            "two variants are named \"mixture\"",
        ),
        ("\"dense\"", "\"../dense\"", "since folders have it"),
        (
            "model.feed_forward=dense",
            "train.seed=4",
            "the study itself decides train.seed",
        ),
        ("config = \"run.toml\"", "", "missing field `config`"),
    ];
    for (from, to, expected) in cases {
        let found = wrong(from, to);
        assert!(
            found.starts_with("FILE: ") && found.contains(expected),
            "{found}"
        );
    }
    let one = &STUDY[..STUDY.rfind("[[variant]]").unwrap()];
    assert!(
        load_text(one, None)
            .unwrap_err()
            .contains("at least two variants")
    );
}
