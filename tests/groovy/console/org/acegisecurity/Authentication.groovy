package org.acegisecurity

class Authentication {
    final String name

    Authentication(String name) {
        this.name = name
    }
}
