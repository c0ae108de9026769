use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::*;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/template/examples")
}

fn template(source: &str) -> Result<ChatTemplate, TemplateError> {
    let tokens = [
        ("bos_token", "<s>".to_owned()),
        ("eos_token", "</s>".to_owned()),
    ];
    ChatTemplate::new(source, tokens.into())
}

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: vec![Part::Text(content.to_owned())],
    }
}

fn rendered(source: &str) -> Result<String, TemplateError> {
    template(source)?.render(&[message("user", "a")], &Variables::default(), "")
}

#[test]
fn chats_are_what_jinja_makes_of_them() {
    let chats = fs::read_to_string(examples().join("chats.json")).unwrap();
    let chats: Json = serde_json::from_str(&chats).unwrap();
    for name in ["headers", "instructions", "json", "marked", "roles"] {
        let source = fs::read_to_string(examples().join(name).with_extension("jinja")).unwrap();
        let template = template(&source).unwrap();
        for (chat, messages) in chats.as_object().unwrap() {
            let text = |message: &Json, key: &str| message[key].as_str().unwrap().to_owned();
            let messages = messages.as_array().unwrap().iter();
            let messages: Vec<Message> = messages
                .map(|own| message(&text(own, "role"), &text(own, "content")))
                .collect();
            let expected = fs::read_to_string(examples().join(format!("{name}.{chat}.txt")));
            let found = match template.render(&messages, &Variables::default(), "") {
                Ok(text) => text,
                Err(TemplateError::Raised(reason)) => format!("refused: {reason}"),
                Err(error) => panic!("{name}, {chat}: {error}"),
            };
            assert_eq!(found, expected.unwrap(), "{name}, {chat}");
        }
    }
}

#[test]
fn a_template_reads_variables_which_take_the_place_of_nothing() {
    let source = "{{ messages|length }}{{ bos_token }}{% if enable_thinking is defined and not enable_thinking %}no{% endif %}";
    let template = template(source).unwrap();
    let rendered = |variables: Json| {
        let variables = variables.as_object().unwrap();
        template
            .render(&[message("user", "a")], variables, "")
            .unwrap()
    };
    assert_eq!(rendered(serde_json::json!({})), "1<s>");
    let given = serde_json::json!({ "enable_thinking": false, "messages": [], "bos_token": "" });
    assert_eq!(rendered(given), "1<s>no");
}

#[test]
fn a_template_that_cannot_be_read_says_where() {
    let error = template("{{ a }}\n{% for %}").unwrap_err();
    assert!(matches!(error, TemplateError::Syntax(_)));
    assert!(error.to_string().ends_with("(line 2)"), "{error}");
}

#[test]
fn a_template_that_fails_says_why() {
    let error = rendered("{{ messages[0].content.frobnicate() }}").unwrap_err();
    assert!(matches!(error, TemplateError::Failed(_)));
    assert!(error.to_string().contains("frobnicate"), "{error}");
    let error = rendered("{{ raise_exception('no ' + messages[0].role) }}").unwrap_err();
    assert_eq!(error, TemplateError::Raised("no user".to_owned()));
}

#[test]
fn the_time_is_written_as_python_writes_it() {
    let year = rendered("{{ strftime_now('%Y') }}").unwrap();
    assert!(
        year.len() == 4 && year.parse::<u32>().unwrap() > 2024,
        "{year}"
    );
    let error = rendered("{{ strftime_now('%!') }}").unwrap_err();
    assert!(matches!(error, TemplateError::Failed(_)));
}

#[test]
fn marks_of_what_is_said_are_left_out() {
    for (source, expected) in [
        (
            "a {%- generation %}b{% endgeneration -%} c",
            "a {%- if true %}b{% endif -%} c",
        ),
        (
            "{% set generation = 1 %}{{ generation }}{% x",
            "{% set generation = 1 %}{{ generation }}{% x",
        ),
        ("plain", "plain"),
    ] {
        assert_eq!(without_generation_tags(source), expected);
    }
}

#[test]
fn pictures_are_parts_where_the_template_writes_parts() {
    let picture = Part::Picture(crate::request::PictureUrl {
        param: "p".to_owned(),
        url: "data:,".to_owned(),
    });
    let message = Message {
        role: "user".to_owned(),
        content: vec![picture, Part::Text("What is this?".to_owned())],
    };
    let written = |source: &str| {
        let template = template(source).unwrap();
        template
            .render(
                std::slice::from_ref(&message),
                &Variables::default(),
                "<image>",
            )
            .unwrap()
    };
    // As in Llama 3.2 Vision.
    let of_parts = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}\
                    {% if part.type == 'image' %}<|image|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}";
    assert_eq!(written(of_parts), "<|image|>What is this?");
    assert_eq!(
        written("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"),
        "user: <image>What is this?"
    );
    assert_eq!(
        written("{{ messages[0].content | upper }}"),
        "<IMAGE>WHAT IS THIS?"
    );
}
