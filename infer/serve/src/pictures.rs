//! The pictures of requests: where they may come from, and what the model reads of them.
//!
//! A picture is part of the request itself, as a `data:` URL, or a file below a folder that the server is given. Addresses of
//! other machines are never fetched.

mod room;

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT;
use firebox_model::vision::Picture;
use sha2::{Digest, Sha256};

pub use self::room::{PictureRoom, Reserved};
use crate::error::ApiError;
use crate::request::{Message, PictureUrl};

/// When a client whose pictures find no room is asked to try again.
const RETRY: Duration = Duration::from_secs(1);

/// So much of an address is shown.
const SHOWN: usize = 60;

/// Makes a picture's file into what a model reads.
pub trait ReadPicture: fmt::Debug + Send + Sync {
    /// The most bytes of a file.
    fn most_bytes(&self) -> u64;

    /// Bytes of what the model reads of a picture, the same for each.
    fn picture_bytes(&self) -> u64;

    /// What the model reads of a file's content, which errors call `name`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as a sentence.
    fn read(&self, name: &str, content: &[u8]) -> Result<Picture, String>;
}

/// How a model that sees takes pictures.
#[derive(Debug)]
pub struct PictureInput {
    /// Reads them.
    pub reader: Box<dyn ReadPicture>,
    /// The token that stands for a picture.
    pub image_token: u32,
    /// The text that becomes this token, if there is one.
    pub image_text: Option<String>,
    /// The folder whose files requests may name, without links in its path; `None` where they may name none.
    pub folder: Option<PathBuf>,
    /// The most pictures of a request.
    pub most: usize,
    /// Where those of all requests wait.
    pub room: PictureRoom,
}

/// The pictures of a request, in order.
#[derive(Debug)]
pub struct RequestPictures {
    /// At least one.
    pub pictures: Vec<Picture>,
    /// Of all that the model reads of them: equal where they are.
    pub hash: [u8; 32],
    /// Where they wait.
    _room: Reserved,
}

impl RequestPictures {
    /// Pictures as they are read, in room that is theirs.
    pub fn new(pictures: Vec<Picture>, room: Reserved) -> Self {
        let mut hasher = Sha256::new();
        for picture in &pictures {
            hasher.update((picture.arrangement as u64).to_le_bytes());
            for used in &picture.used {
                hasher.update([u8::from(*used)]);
            }
            for value in &picture.pixels {
                hasher.update(value.to_le_bytes());
            }
        }
        Self {
            hash: hasher.finalize().into(),
            pictures,
            _room: room,
        }
    }
}

impl PictureInput {
    /// The pictures of messages; `None` if there are none.
    ///
    /// # Errors
    ///
    /// When there are too many, those of other requests leave no room for them, or one cannot be read.
    pub fn read(&self, messages: &[Message]) -> Result<Option<RequestPictures>, ApiError> {
        let urls: Vec<&PictureUrl> = messages.iter().flat_map(Message::pictures).collect();
        if urls.len() > self.most {
            return Err(ApiError::InvalidValue {
                param: "messages".to_owned(),
                message: format!(
                    "messages have {} pictures; a request to this server may have {}",
                    urls.len(),
                    self.most
                ),
            });
        }
        if urls.is_empty() {
            return Ok(None);
        }
        let bytes = self
            .reader
            .picture_bytes()
            .saturating_mul(urls.len() as u64);
        if bytes > self.room.limit() {
            return Err(ApiError::PicturesTooLarge {
                pictures: urls.len(),
                bytes,
                limit: self.room.limit(),
            });
        }
        let room = self.room.reserve(bytes);
        let room = room.ok_or(ApiError::PicturesFull { retry_after: RETRY })?;
        let pictures = urls.into_iter().map(|url| {
            self.picture(&url.url)
                .map_err(|reason| ApiError::InvalidValue {
                    param: url.param.clone(),
                    message: format!("{}: {reason}", url.param),
                })
        });
        let pictures: Vec<Picture> = pictures.collect::<Result<_, _>>()?;
        Ok(Some(RequestPictures::new(pictures, room)))
    }

    fn picture(&self, url: &str) -> Result<Picture, String> {
        if let Some(data) = strip_scheme(url, "data:") {
            return self.reader.read("the picture", &data_of(data)?);
        }
        let path = match strip_scheme(url, "file://") {
            Some(rest) => local_path(rest)?,
            None => match url.split_once(':').map(|(scheme, _)| scheme) {
                Some("http" | "https" | "HTTP" | "HTTPS") => {
                    return Err(
                        "this server fetches no addresses; send the picture itself as a data: URL"
                            .to_owned(),
                    );
                }
                Some(scheme) if !scheme.contains('/') => {
                    return Err(format!(
                        "addresses of the kind {:?} are not read; send the picture itself as a data: URL",
                        shown(scheme)
                    ));
                }
                _ => url.to_owned(),
            },
        };
        let content = self.file(&path)?;
        self.reader.read(&shown(url), &content)
    }

    /// The content of a file below the folder.
    fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        let Some(folder) = &self.folder else {
            return Err(
                "this server was given no folder of pictures (--image-folder); send the picture itself as a data: URL"
                    .to_owned(),
            );
        };
        // Of what is outside, nobody learns whether it is there.
        let absent = || {
            format!(
                "there is no file {:?} in the folder of pictures",
                shown(path)
            )
        };
        let named = Path::new(path);
        if named.components().any(|part| part == Component::ParentDir) {
            return Err(absent());
        }
        // A whole path takes the place of the folder.
        let whole = fs::canonicalize(folder.join(named)).map_err(|_| absent())?;
        if !whole.starts_with(folder) {
            return Err(absent());
        }
        // A pipe would never end.
        if !fs::metadata(&whole).is_ok_and(|found| found.is_file()) {
            return Err(absent());
        }
        let mut content = Vec::new();
        let read = File::open(&whole).and_then(|file| {
            // One byte more shows that it is too large.
            let mut file = file.take(self.reader.most_bytes() + 1);
            file.read_to_end(&mut content)
        });
        read.map_err(|error| {
            tracing::warn!("a picture cannot be read: {}: {error}", whole.display());
            format!("{:?} cannot be read", shown(path))
        })?;
        Ok(content)
    }
}

/// What follows a scheme, whose letters may be large or small.
fn strip_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    let (head, rest) = url.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// The bytes of a `data:` URL (RFC 2397), after its scheme. What they are is told by the bytes themselves.
fn data_of(rest: &str) -> Result<Vec<u8>, String> {
    let (head, data) = rest
        .split_once(',')
        .ok_or("a data: URL has a comma before its data, such as data:image/png;base64,…")?;
    let is_base64 = head.rsplit(';').next();
    if !is_base64.is_some_and(|last| last.trim().eq_ignore_ascii_case("base64")) {
        return Err(
            "a picture in a data: URL is written in base64, such as data:image/png;base64,…"
                .to_owned(),
        );
    }
    let decoded = STANDARD_PAD_INDIFFERENT.decode(data.trim_ascii());
    decoded.map_err(|error| format!("the data of the URL is not base64: {error}"))
}

/// The path of a `file:` URL (RFC 8089), after its scheme and slashes.
fn local_path(rest: &str) -> Result<String, String> {
    let path = match rest.find('/') {
        Some(slash) if ["", "localhost"].contains(&&rest[..slash]) => &rest[slash..],
        _ => {
            return Err(
                "a file: URL names a file of the server, such as file:///pictures/boiler.png"
                    .to_owned(),
            );
        }
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, others @ ..] = rest {
        let code = match (first, others) {
            (b'%', [high, low, ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                let digits = str::from_utf8(&digits).ok();
                digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &others[2..] } else { others };
    }
    String::from_utf8(bytes).map_err(|_| "the path of the file: URL is not UTF-8".to_owned())
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::request::Part;

    /// Takes what it is given for a picture of one value a byte.
    #[derive(Debug, Default)]
    struct Bytes(Mutex<Vec<String>>);

    impl ReadPicture for Bytes {
        fn most_bytes(&self) -> u64 {
            8
        }

        fn picture_bytes(&self) -> u64 {
            4
        }

        fn read(&self, name: &str, content: &[u8]) -> Result<Picture, String> {
            self.0.lock().unwrap().push(name.to_owned());
            if content.len() > 8 {
                return Err(format!("{name} is too large"));
            }
            Ok(Picture {
                arrangement: 1,
                used: vec![true],
                pixels: content.iter().map(|&byte| f32::from(byte)).collect(),
            })
        }
    }

    fn input(folder: Option<&Path>) -> PictureInput {
        PictureInput {
            reader: Box::new(Bytes::default()),
            image_token: 300,
            image_text: None,
            folder: folder.map(|folder| folder.canonicalize().unwrap()),
            most: 2,
            room: PictureRoom::new(9),
        }
    }

    fn message(urls: &[&str]) -> Message {
        let part = |url: &&str| {
            Part::Picture(PictureUrl {
                param: "p".to_owned(),
                url: (*url).to_owned(),
            })
        };
        Message {
            role: "user".to_owned(),
            content: urls.iter().map(part).collect(),
        }
    }

    fn read(input: &PictureInput, url: &str) -> Result<Vec<f32>, String> {
        let read = input.read(&[message(&[url])]);
        let read = read.map_err(|error| error.to_string())?;
        Ok(read.unwrap().pictures.remove(0).pixels)
    }

    #[test]
    fn data_is_read_in_base64() {
        let input = input(None);
        for url in [
            "data:image/png;base64,AQID",
            "data:;base64,AQID",
            "DATA:image/jpeg;charset=x;Base64,AQID\n",
        ] {
            assert_eq!(read(&input, url), Ok(vec![1.0, 2.0, 3.0]), "{url}");
        }
        // Padding may be left out.
        for url in ["data:;base64,AQI=", "data:;base64,AQI"] {
            assert_eq!(read(&input, url), Ok(vec![1.0, 2.0]), "{url}");
        }
        for (url, words) in [
            ("data:image/png;base64", "has a comma"),
            ("data:image/png,AQID", "is written in base64"),
            ("data:;base64,AQ!D", "is not base64"),
            ("https://example.org/a.png", "fetches no addresses"),
            ("ftp://example.org/a.png", "of the kind \"ftp\""),
            ("a.png", "--image-folder"),
            ("file:///a.png", "--image-folder"),
        ] {
            let error = read(&input, url).unwrap_err();
            assert!(
                error.starts_with("p: ") && error.contains(words),
                "{url}: {error}"
            );
        }
        let many = input
            .read(&[message(&["data:;base64,AQID"; 3])])
            .unwrap_err();
        assert!(many.to_string().contains("3 pictures"), "{many}");
        assert!(input.read(&[message(&[])]).unwrap().is_none());
    }

    #[test]
    fn pictures_wait_where_there_is_room() {
        let mut input = input(None);
        let ask =
            |input: &PictureInput, count| input.read(&[message(&vec!["data:;base64,AQID"; count])]);
        let first = ask(&input, 2).unwrap();
        // Nine bytes hold two pictures of four, and none more until they are gone.
        let full = ask(&input, 1).unwrap_err();
        assert_eq!((full.status().as_u16(), full.retry_after()), (429, Some(1)));
        drop(first);
        assert!(ask(&input, 1).unwrap().is_some());
        // What cannot be read leaves no trace.
        assert!(input.read(&[message(&["data:;base64,!"; 2])]).is_err());
        assert!(ask(&input, 2).is_ok());
        input.most = 3;
        let large = ask(&input, 3).unwrap_err();
        assert_eq!(large.status().as_u16(), 413);
        assert_eq!(
            large.to_string(),
            "a request with 3 pictures holds 12 B of memory while it waits; this server has 9 B for pictures"
        );
    }

    #[test]
    fn files_are_below_the_folder() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("pictures");
        fs::create_dir_all(folder.join("in")).unwrap();
        fs::write(folder.join("a b.png"), [7]).unwrap();
        fs::write(folder.join("in/c:d.png"), [8]).unwrap();
        fs::write(folder.join("large.png"), [0; 100]).unwrap();
        fs::write(place.path().join("secret.png"), [9]).unwrap();
        let input = input(Some(&folder));
        let whole = folder.canonicalize().unwrap().join("a b.png");
        let whole = format!("file://{}", whole.display());
        for url in ["a b.png", "./a b.png", &whole, &whole.replace(' ', "%20")] {
            assert_eq!(read(&input, url), Ok(vec![7.0]), "{url}");
        }
        assert_eq!(read(&input, "in/c:d.png"), Ok(vec![8.0]));
        let secret = format!("file://{}", place.path().join("secret.png").display());
        let mut outside = vec![
            "../secret.png".to_owned(),
            "in/../a b.png".to_owned(),
            "absent.png".to_owned(),
            "in".to_owned(),
            String::new(),
            secret.replacen("file://", "file://localhost", 1),
            secret.clone(),
            secret.replace("secret", "%2e%2e/secret"),
            place.path().join("secret.png").display().to_string(),
        ];
        #[cfg(unix)]
        {
            let link = folder.join("link.png");
            std::os::unix::fs::symlink(place.path().join("secret.png"), link).unwrap();
            std::os::unix::fs::symlink(place.path(), folder.join("up")).unwrap();
            outside.extend(["link.png".to_owned(), "up/secret.png".to_owned()]);
        }
        for url in outside {
            let error = read(&input, &url).unwrap_err();
            assert!(error.contains("there is no file"), "{url}: {error}");
        }
        assert!(
            read(&input, "file://host/a.png")
                .unwrap_err()
                .contains("of the server")
        );
        assert_eq!(
            read(&input, "large.png").unwrap_err(),
            "p: large.png is too large"
        );
    }

    #[test]
    fn equal_pictures_have_equal_hashes() {
        let input = input(None);
        let hash = |urls: &[&str]| input.read(&[message(urls)]).unwrap().unwrap().hash;
        let [one, two] = ["data:;base64,AQID", "data:;base64,AQIE"];
        assert_eq!(hash(&[one]), hash(&["data:image/png;base64,AQID"]));
        assert_ne!(hash(&[one]), hash(&[two]));
        assert_ne!(hash(&[one, two]), hash(&[two, one]));
    }
}
