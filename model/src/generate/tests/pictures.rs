//! Texts that see pictures beside texts that see others or none.

use super::*;
use crate::testing::{picture, seeing, with_open_gates};
use crate::vision::Picture;

/// What is generated, and how many tokens of its prompt each text took over.
#[derive(Default)]
struct Told(Vec<Vec<u32>>, Vec<usize>);

impl Receiver for Told {
    fn token(&mut self, text: usize, token: Token) -> bool {
        self.0.resize(self.0.len().max(text + 1), Vec::new());
        self.0[text].push(token.id);
        true
    }

    fn ended(&mut self, text: usize, ended: Ended) {
        self.1.resize(self.1.len().max(text + 1), 0);
        self.1[text] = ended.shared;
    }
}

fn told(model: &LanguageModel, requests: &[Request], options: &Options) -> Told {
    let mut told = Told::default();
    generate_all(
        &mut Local::new(model),
        requests.iter().cloned(),
        options,
        &mut told,
    );
    told
}

#[test]
fn only_texts_that_see_the_same_share_what_they_begin_with() {
    let device = select(default_name()).unwrap();
    let model = with_open_gates(LanguageModel::random(&seeing(), 3, &device));
    let image = model.config().image_token().unwrap();
    // A whole block of the cache, and a token more.
    let mut prompt = text(1, 18, 37).remove(0);
    prompt[1] = image;
    let look = |pictures: &[Picture]| Some(Arc::new(model.look(pictures)));
    let (one, other) = (look(&[picture(1, 2)]), look(&[picture(2, 1)]));
    let seen = [&one, &other, &None, &one, &None, &other];
    let request = |pictures: &Option<Arc<PictureKeys>>| Request {
        pictures: pictures.clone(),
        ..Request::new(prompt.clone(), 9, Sampling::greedy())
    };
    let requests: Vec<Request> = seen.into_iter().map(request).collect();
    let alone = requests.iter().map(|request| {
        let told = told(&model, std::slice::from_ref(request), &Options::new(&[]));
        told.0[0].clone()
    });
    let alone: Vec<Vec<u32>> = alone.collect();
    assert_ne!(alone[0], alone[1]);
    assert_ne!(alone[0], alone[2]);
    let plain = Options::new(&[]);
    for (what, options) in [
        ("at once", Options { batch: 6, ..plain }),
        ("one by one", Options { kept: 5, ..plain }),
        (
            "in parts",
            Options {
                batch: 3,
                step_tokens: 4,
                ..plain
            },
        ),
        (
            "with drafts",
            Options {
                batch: 4,
                draft: Draft::PromptLookup,
                draft_tokens: DraftTokens::Fixed(3),
                ..plain
            },
        ),
        // Two texts of 27 tokens have two blocks each.
        (
            "in few blocks",
            Options {
                batch: 3,
                blocks: Some(3),
                ..plain
            },
        ),
    ] {
        let told = told(&model, &requests, &options);
        assert_eq!(told.0, alone, "{what}");
        if ["at once", "one by one"].contains(&what) {
            let shared: Vec<bool> = told.1.iter().map(|&shared| shared > 0).collect();
            assert_eq!(shared, [false, false, false, true, true, true], "{what}");
        }
    }
}

#[test]
#[should_panic(expected = "a text with pictures is not scored, and fits the context")]
fn a_text_that_sees_pictures_is_not_cut() {
    let device = select(default_name()).unwrap();
    let model = LanguageModel::random(&seeing(), 3, &device);
    let request = Request {
        pictures: Some(Arc::new(model.look(&[picture(1, 1)]))),
        ..Request::new(vec![37, 1], 31, Sampling::greedy())
    };
    let _ = told(&model, &[request], &Options::new(&[]));
}
